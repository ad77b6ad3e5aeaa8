"""What each part of the data path costs by itself: one program a part."""
