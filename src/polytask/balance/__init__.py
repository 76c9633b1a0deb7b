"""How several losses become one update; torch only, knows no network."""
