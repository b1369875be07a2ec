"""Training that goes on without the replicas that are lost, and takes back those that return.

`ElasticGroup` is what a run needs of it. Membership is decided by torchft's lighthouse; groups, state and commits are ours
(`docs/elastic.md` says why).
"""
