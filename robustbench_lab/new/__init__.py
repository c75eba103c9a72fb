"""`new`: the files of an attack, defense, backbone, dataset or table in one's own package."""
