"""The board: a read-only web page over a jobs folder.

listing  a row for each job, read again only where a file has changed
live     the parts of one job's page that change while it trains, its events and its logs
web      routes, streams of server-sent events, who may look (starlette)
"""
