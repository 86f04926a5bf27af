"""Postgres: the schema, connections, and one module of queries per aggregate.

Queries are SQL through psycopg; SQLAlchemy describes the schema for migrations and the drift check.
Every query on a tenant's rows takes the tenant; the API's role sees no other rows anyway.
"""
