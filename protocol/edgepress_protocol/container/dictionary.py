"""What a reader of heads knows beforehand: the graphs of eleven small networks as our exporters write them.

It is a part of the form: another dictionary is another version of the container, and this file stays for ever.
"""

from importlib.resources import files

DICTIONARY = files(__package__).joinpath("graphs-1.dict").read_bytes()
