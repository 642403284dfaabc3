"""Learning from a teacher's predictions on the target, and making source and target images alike."""
