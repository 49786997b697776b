"""What bytes mean: codecs without input and output, one file for each protocol or layout.

Nothing here knows Twisted, OpenSSL, a clock or a log; limits are arguments.  A decoder takes bytes
however they are cut and gives whole frames; what is wrong with a frame is a value or a
`RemoteProtocolError`, for the session to answer.
"""
