"""What is not LDM-v0: experiments import the core, which never imports them."""
