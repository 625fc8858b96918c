"""What the pods of a run share, whether they check it or train it; nothing here needs torch.

`errors` and `record` turn failures into the run's final record, `files`, `data` and `mixture` turn files into examples,
`tokenizer` and `render` turn those into tokens, `patience` waits for stores that are away.
"""
