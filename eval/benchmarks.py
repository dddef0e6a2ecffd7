"""The names of the benchmarks; a file that loads at once."""

BENCHMARKS = {
    "mmeb": "the 36 data sets of MMEB",
    "mmeb-v2-image": "the same with the texts of MMEB-V2",
    "visdoc": "MMEB-V2's visual documents",
    "video": "MMEB-V2's videos",
    "retrieval": "Flickr30K, COCO, ShareGPT4V-1k and Urban1K, both ways",
    "sugarcrepe": "SugarCrepe's seven subsets",
    "pairs": "rows of your own: queries and their right answers",
    "world": "the miniature world",
}
