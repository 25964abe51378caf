"""Device profiles and where to find the devices."""
