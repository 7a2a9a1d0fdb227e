"""What `import edgeq` offers, one file each: deploy, validate, verify; and the same for fleets."""
