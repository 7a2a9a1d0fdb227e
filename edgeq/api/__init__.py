"""What `import edgeq` offers, one file each: deploy, validate, verify, preflight; and the first two for fleets."""
