"""Many lines by many workers: processes of this machine, or actors on a cluster.

Lines are worked on in blocks of so many that follow each other. A block is made from a fresh start, so that what
becomes of its lines depends on nothing but the block: not on who makes it, on what was made before, or on how often it
was begun. `blocks` cuts them, `crew` hands them to workers and puts the answers in order, `worker` is what a worker
does, `processes` and `on_ray` are the kinds of workers, and `records` is the file that a run goes on from.

Nothing here knows of texts or images: work is an object that opens itself and answers lines (`worker.Work`).
"""
