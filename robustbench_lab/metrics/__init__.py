"""What is measured beside accuracy: one file a metric, each a function of images and models that returns one value per image."""
