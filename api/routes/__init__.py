"""One module a resource. Routes are thin: they name what a request needs and what it returns."""
