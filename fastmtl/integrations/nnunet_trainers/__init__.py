"""Trainers that nnU-Net finds in this folder; it imports every module here."""
