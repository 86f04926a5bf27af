"""Rate limits of tenants: who is let through, and how answers tell what is left."""
