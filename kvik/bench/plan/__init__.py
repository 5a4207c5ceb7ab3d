"""Planning a service before there is one: Kvik's own scheduler under a load, in time that only passes on paper."""
