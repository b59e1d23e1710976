"""From raw question-and-answer files to the MindRecord rows that training reads.

sample      makes a dataset of school arithmetic problems, in the schema of BELLE School Math
convert     raw records to conversations
tokenizer   trains a SentencePiece model, and wraps the models others trained
templates   how a conversation becomes text, for training and for inference alike
preprocess  conversations to rows of token ids and labels
info        what a dataset on disk holds, without MindSpore
"""
