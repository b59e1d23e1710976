"""Inference with the model of a job, or any model of a known family.

sources       resolves a reference (a job, a folder, a file) to its model, tokenizer and template
weights       its tensors, memory-mapped where possible, LoRA folded or kept apart
numpy_network the network on CPU, weights loaded; threads chooses how many compute it
network       MindFormers' network on Ascend, weights loaded
decoding      a prompt and its growing answer: sampling, stops, streams
batching      many of them at once; each joins and leaves between two tokens (server/queue: requests of serve do)
cached        their keys and values on CPU
slots         how many at once
paged         and on Ascend, in MindFormers' paged attention
session       questions in, answers out
provenance    inputs and settings of an answer, so that a file is only continued with the same ones
prompts       questions from options, text files and JSON lines
"""
