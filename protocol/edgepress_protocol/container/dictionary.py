"""What a reader of heads knows beforehand: the graphs of eleven small networks as our exporters write them.

It is a part of the form: another dictionary is another version of the container, and this file stays for ever.
"""

import pkgutil

# Not by importlib.resources, which brings zipfile and tempfile: an idle agent would hold their megabyte for ever.
_READ = pkgutil.get_data(__package__, "graphs-1.dict")
assert _READ is not None, "the package was installed by something that cannot read its files"
DICTIONARY: bytes = _READ
