"""The claims of the three papers, re-enacted on the miniature world: each with the papers' figure beside ours."""
