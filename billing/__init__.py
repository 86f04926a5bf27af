"""Money: prices, settling, the ledger. The only package that inserts into `usage` and
`ledger_entries`; it connects as the role that may.
"""
