"""Infrastructure as code of a bundle: a SAM template, its CloudFormation form, and its README."""
