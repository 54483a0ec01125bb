"""New weights -> generator: device to device, newest wins."""
