"""What all ops share: backends, argument checks, `torch.library` registration, memory."""
