"""Answers from what a job left behind, or from any model of a known family.

sources       what a reference means: a job, a folder, a file; its model, tokenizer and template
weights       its tensors, memory-mapped where possible, LoRA folded or kept apart
network       MindFormers' network on this host, weights loaded
cached        a key-value cache on CPU, through MindFormers' own layers
decoding      many rows at once through MindFormers' ``generate``: sampling, stops, streams
session       questions in, answers out
provenance    how an answer was made, so that a file is only continued in the same way
prompts       questions from options, text files and JSON lines
"""
