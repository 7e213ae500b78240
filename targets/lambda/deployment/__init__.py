"""Deployments: bundles on AWS through boto3. What AWS has is the only state.

deploy.py says the order of things; every other file here ensures, reads or removes one kind of them.
"""
