"""Networks that share; torch only."""
