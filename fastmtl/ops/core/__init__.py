"""What all ops stand on: backends, argument checks, `torch.library` registration, memory."""
