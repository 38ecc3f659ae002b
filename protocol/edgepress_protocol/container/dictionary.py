"""What a reader of heads knows beforehand: the graphs of eleven small networks as our exporters write them.

It is a part of the form: another dictionary is another version of the container, and this file stays for ever.
"""

from pathlib import Path

# Not by importlib.resources, which brings zipfile and tempfile: an idle agent would hold their megabyte for ever.
DICTIONARY = Path(__file__).with_name("graphs-1.dict").read_bytes()
