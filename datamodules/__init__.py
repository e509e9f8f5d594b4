"""One LightningDataModule per data family."""
