CREATE TABLE hr_employees (emp_name TEXT, emp_team TEXT, emp_year INTEGER, emp_salary INTEGER);
INSERT INTO hr_employees VALUES
  ('Ann Berg', 'ops', 2012, 5100),
  ('Bob Cole', 'dev', 2019, 6200),
  ('Cleo Dahl', 'dev', 2021, 4800),
  ('Dan Egan', 'sales', 2008, 3900),
  ('Eve Fox', 'ops', 2015, 7100),
  ('Fay Gray', 'sales', 2022, 3150),
  ('Gil Hart', 'dev', 2010, 8800),
  ('Hana Ito', 'ops', 2018, 4550),
  ('Ian Jung', 'dev', 2016, 5650),
  ('Joy Kerr', 'sales', 2020, 4150),
  ('Kai Lund', 'legal', 2014, 6800),
  ('Lea Moss', 'legal', 2023, 5350),
  ('Max Nagy', 'ops', 2009, 6050);
CREATE TABLE wh_products (item_id INTEGER, item_name TEXT, item_category TEXT, item_price INTEGER, item_stock INTEGER);
INSERT INTO wh_products VALUES
  (1, 'lamp', 'light', 35, 120),
  (2, 'bulb', 'light', 4, 900),
  (3, 'desk', 'office', 240, 15),
  (4, 'chair', 'office', 95, 60),
  (5, 'drill', 'tools', 130, 25),
  (6, 'saw', 'tools', 45, 42),
  (7, 'hammer', 'tools', 22, 75),
  (8, 'shelf', 'office', 65, 33),
  (9, 'tent', 'garden', 180, 9),
  (10, 'hose', 'garden', 28, 210),
  (11, 'torch', 'light', 17, 310);
CREATE TABLE op_orders (item_ref INTEGER, ord_quantity INTEGER, ord_year INTEGER, ord_city TEXT);
INSERT INTO op_orders VALUES
  (1, 3, 2021, 'Oslo'),
  (2, 50, 2021, 'Kiel'),
  (3, 2, 2022, 'Oslo'),
  (4, 8, 2022, 'Graz'),
  (5, 1, 2023, 'Kiel'),
  (6, 5, 2023, 'Oslo'),
  (7, 12, 2021, 'Graz'),
  (1, 7, 2023, 'Kiel'),
  (8, 4, 2022, 'Oslo'),
  (2, 20, 2023, 'Graz'),
  (5, 6, 2022, 'Oslo'),
  (10, 15, 2020, 'Turin'),
  (11, 30, 2020, 'Kiel'),
  (9, 9, 2022, 'Turin'),
  (7, 40, 2023, 'Oslo'),
  (3, 10, 2020, 'Graz'),
  (4, 25, 2023, 'Turin');
