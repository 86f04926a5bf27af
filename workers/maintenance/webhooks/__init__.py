"""Sends webhooks: what a delivery says, where it may go, and when it is tried again."""
