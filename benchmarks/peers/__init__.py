"""The engines that ours is measured against, each behind `arm.Arm`."""
