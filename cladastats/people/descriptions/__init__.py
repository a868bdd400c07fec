"""Descriptions of the corpora that come with the package, one TOML file each.

    naturalstories.toml  self-paced reading and A-Maze of ten stories
    ucl_et.toml          eye-tracking of single sentences
    ucl_erp.toml         brain responses to the same sentences
    provo.toml           eye-tracking of short passages
    meco_en.toml         eye-tracking of texts, the English sample of the first wave
    brothers2021.toml    self-paced reading of words in strong and weak contexts
    meco.toml            eye-tracking of texts in thirteen languages, the first wave
    meco2.toml           the same in sixteen further samples, the second wave
    onestop.toml         eye-tracking of newspaper paragraphs by 360 readers

`cladastats.people.description` reads them. Must not know any code.
"""
