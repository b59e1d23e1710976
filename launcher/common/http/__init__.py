"""A small HTTP server: who may ask, limits on connections, and listening until a signal.

access       refuses requests by token, host name and framing (starlette)
connections  limits of number and time (uvicorn)
listening    addresses, and the server in a thread of its own
"""
