"""Training that continues without the replicas that are lost and takes back those that return.

A run needs `ElasticGroup` alone. torchft's lighthouse decides the membership. Groups, state and commits are made here
(`docs/elastic.md` gives the reasons).
"""
