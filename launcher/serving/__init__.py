"""A small HTTP server that answers as OpenAI's chat completions do, for trying a model out.

protocol   what a request may say, and how answers are put
queue      requests on their way to the one model, several in a batch
server     HTTP: who may ask, how much, and what goes back
"""
