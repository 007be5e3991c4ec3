"""What is wrong with a set of pictures: duplicates, planted pictures, outliers, label errors, quality, masks."""
