"""Files, the cache folder, the machine and the command line: what every other room may use.

    files.py        files that are whole or absent, in a folder or at a URL
    jsonfile.py     JSON files that say which schema they follow
    arrays.py       arrays in files that are mapped into memory
    cache.py        the folder that keeps what is fetched or made once
    encoding.py     text whose encoding was mangled, mended
    machine.py      cores, threads, memory
    commandline.py  what the commands of both packages share: one-line errors, exit codes

Knows the operating system. Must not know models, plans or studies.
"""
