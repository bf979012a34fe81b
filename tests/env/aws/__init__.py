"""The AWS of the local world: moto's server, with what it lacks added around it."""

ACCOUNT = "123456789012"
