"""What the report draws: charts as SVG text, and adversarial examples as PNG."""
