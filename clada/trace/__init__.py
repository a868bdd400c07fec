"""Texts on a page, each token shaded by what it cost: one file of HTML, which needs no network.

    texts.py   steps, results of `clada generate` and tables of words, as texts with their numbers
    page.py    `clada.Trace`: such texts as a page, and as an output of JupyterLab
    page.html  the frame of the page
    page.css   its looks
    page.js    its only script: shades, reads keys, draws figures

Knows steps and tables by the names of their fields and columns. Must not know models, or how anything is computed.
"""
