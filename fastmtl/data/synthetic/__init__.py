"""Made-up tiles and slides: demo data that need no download."""
