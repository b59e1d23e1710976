"""From raw question-and-answer files to the MindRecord rows that training reads.

sample      generates a dataset of school arithmetic problems, in the schema of BELLE School Math
convert     raw records to conversations
tokenizer   trains SentencePiece models, and wraps existing tokenizers
templates   renders conversations as text, for training and inference alike
preprocess  conversations to rows of token ids and labels
info        describes a dataset on disk, without MindSpore
"""
