"""AWS Lambda: profile, bundles, runtime and the local platform."""
