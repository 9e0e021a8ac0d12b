"""What runs inside an isolated installation; ``protocol`` is also the client's.

The files of this folder are copied beside each other into the installation and import each other by their bare names. Python
3.7 with only numpy and msgpack must run them.
"""
