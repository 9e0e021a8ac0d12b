"""``ldm gallery``: a static site with a page for each environment of the catalogue."""
