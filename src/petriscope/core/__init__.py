"""What every room uses: errors, progress, files, the device, the registry, the recipe's schema, drawing."""
