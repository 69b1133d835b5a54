"""Training of a backbone on pictures made by formula; nothing of it is needed to use the weights."""
